"""The studio's page in a real browser; skipped where there is no Gradio, playwright or browser."""
