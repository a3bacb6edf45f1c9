"""`wrangan studio`: a page for editing faces by hand. It calls the engine and computes nothing itself.

layout.py places the components, page.py binds their events to the functions in events.py and downloads.py,
and pictures.py writes the HTML that these show. The rest does not use Gradio: work.py does what a button
asks for, session.py holds the state of one tab, and lines.py writes the command lines that make the same
pictures. server.py starts and stops the page.
"""
