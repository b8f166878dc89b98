"""Values and rules that coordinator and hospital share; no network, only the files handed in."""

from common.surroundings import provide

provide()  # before MONAI, which asks for it, is imported by anyone
