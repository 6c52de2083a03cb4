"""How a graph is run: bands, schedule, cost, the choice among plans.  No tensor values here."""
