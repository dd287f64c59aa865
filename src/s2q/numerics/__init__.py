"""Pure functions of tensors: no modules, no files, no configuration. Imports torch only."""
