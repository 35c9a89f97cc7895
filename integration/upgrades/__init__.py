"""What earlier releases left on disks and put on the wire, and how it was recorded."""
