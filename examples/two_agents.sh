#!/bin/sh
# Two agents share a tree of files. Each call is a process of its own, as the tool calls of an agent are. Run it with
# an etcd around it:
#
#     codomyrmex concurrency dev -- sh examples/two_agents.sh
set -eu

anna() { CODOMYRMEX_AGENT=anna codomyrmex concurrency "$@" 2>&1; }
ben() { CODOMYRMEX_AGENT=ben codomyrmex concurrency "$@" 2>&1; }
step() { echo "== $1"; }

step "anna reserves a directory"
anna reserve --path src/parser/ --note "renaming the parser"

step "ben wants a file of it"
ben reserve --path src/parser/lexer.py --timeout 0s || echo "exit code $?"

step "anna goes on, and gives it back"
anna renew src/parser/ --note "half done"
anna release src/parser/

step "ben reserves it for ten seconds, and does not come back"
ben reserve --path src/parser/lexer.py --for 10s --note "moving the tokens"

step "anna waits, and learns what was interrupted"
anna reserve --path src/parser/ --timeout 1m

step "ben comes back too late"
ben renew src/parser/lexer.py || echo "exit code $?"

step "anna ends her work"
anna release --all
