"""The contract: one table of cases (`cases`), run over every framework and bound to the float64 reference."""
