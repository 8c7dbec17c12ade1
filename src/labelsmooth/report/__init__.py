"""The report: pictures and one page of a run or of a comparison, from the files in its folder."""
