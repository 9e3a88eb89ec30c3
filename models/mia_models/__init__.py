"""Models: training and export (the extra ``train``), and the session that serves them.

Serving needs :mod:`mia_models.manifest`, :mod:`mia_models.session` and the files in ``artifacts``, nothing else.
"""
