"""The embedded worlds, by name. Adding one is a new file and a line in this table."""

from toolrl_box.envs.pocket import PocketEnv

ENVS = {"pocket": PocketEnv}
