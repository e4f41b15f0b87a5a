"""How fast it is here: training in several layouts, data, conversion; reports, and two of them compared."""
