"""A run's findings as a terminal table, HTML, Markdown, CSV and figures. No torch."""
