"""What the rooms' events become: log lines, metrics, traces, health. It listens; nobody imports it to speak."""
