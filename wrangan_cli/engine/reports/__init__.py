"""Reports: every table and figure of the paper, and one page, for a model and photographs."""
