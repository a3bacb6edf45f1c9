"""`wrangan studio`: a page on which faces are edited by hand. It calls the engine and computes nothing.

layout.py has what a person sees, page.py says which function an event calls; those are in events.py and
downloads.py, and pictures.py writes as HTML what they show. None of Gradio is in the rest: work.py does
what a button asks for, by the engine; session.py is what one tab has; lines.py writes the command lines
that make the same. server.py begins and ends it all.
"""
