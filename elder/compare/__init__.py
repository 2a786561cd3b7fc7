"""Methods side by side at equal budget: what is measured, the table and the charts."""
