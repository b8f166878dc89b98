"""Values and rules that coordinator and hospital share: no network, no disk beyond what is handed in."""
