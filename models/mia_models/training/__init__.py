"""Training and export. Needs the extra ``train``; nothing here is imported when a model is served."""
