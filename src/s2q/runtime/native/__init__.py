"""Native code around the integer product, built with the package where there is a C compiler."""
