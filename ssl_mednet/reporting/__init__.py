"""Result rows -> one HTML file that a clinician or reviewer can read, and tables in Markdown, CSV and LaTeX."""
