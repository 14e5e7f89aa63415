"""From measurements to decisions: `planner.make_plan` lists the numbered rules."""
