"""Values and rules that coordinator and hospital share; no network, only the files handed in."""

from common.process.account_environment import provide

provide()  # before MONAI, which asks for it, is imported by anyone
