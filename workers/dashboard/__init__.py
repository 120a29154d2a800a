"""The Fleet and VM pages, and the JSON API beside them, inside Flower: see docs/dashboard.md.

`flower_plugin` is the only module that knows Flower's insides.
"""
