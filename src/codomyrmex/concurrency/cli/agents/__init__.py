"""Commands for agents whose every tool call is a new process: they reserve in one call and go on in the next."""
