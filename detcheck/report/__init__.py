"""What a run found, as a terminal table, HTML, Markdown, CSV and figures. No torch."""
