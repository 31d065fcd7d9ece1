"""The commands of `metaxlm`, a module each; `launch/` has a script for each in a checkout."""
