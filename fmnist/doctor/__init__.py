"""Whether all is there that a training needs, and what to type where it isn't.

What may hang or crash is looked at in a process of its own (`entry_points.workers.probe`); what starts those, and
the report, need the standard library alone. To add a check, write a function in `probes` that gives them.
"""
