"""`python -m rl_onoff.cli`."""

from rl_onoff.cli import app

app(prog_name="rl-onoff")
