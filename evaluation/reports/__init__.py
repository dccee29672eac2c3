"""Pages: the report of an evaluation, and the charts, tables and style that the pages of studies and ablations share."""
