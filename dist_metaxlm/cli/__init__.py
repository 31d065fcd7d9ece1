"""The commands of `metaxlm`, one module each; in a checkout `launch/` has a script for each."""
