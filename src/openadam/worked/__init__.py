"""A step worked through by hand: its equations, the numbers filled in, and the coordinates of a real run that are followed for it."""
