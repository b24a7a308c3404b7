"""The deployment on a real Kubernetes: `make kubernetes`, and `make kubernetes-api` for the API server alone."""
