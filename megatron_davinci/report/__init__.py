"""What a run tells people: its files of metrics, figures, and the page of a run or a corpus."""
