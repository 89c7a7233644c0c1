"""What a run tells about itself: metrics, decisions with their reasons, progress, and a report to open in a browser."""
