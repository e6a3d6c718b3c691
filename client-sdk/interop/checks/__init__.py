"""Checks of a running deployment with the client of `tern_interop`. `python -m checks` runs them; `check` beside this
folder starts a deployment for them."""
