"""Parts of top.py: `state` (what is known), `panels` (which figures), `draw` (as lines of text), `screen` (Textual)."""
