"""Values and rules that coordinator and hospital share; no network, only the files handed in."""
