"""From what was measured to what is decided: `planner.make_plan` lists the numbered rules."""
