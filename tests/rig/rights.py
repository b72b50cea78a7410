"""Who may do what, as data: what a walk through the catalogs must find, no right less and none more.

Letters: S select, s select without the hidden columns, I insert, U update, D delete, X execute, u usage of a
sequence, - nothing. In the order producer, worker, operator, reader. The owner has all, Public has nothing.
"""

from __future__ import annotations

from typing import Final

ROLES: Final = ("producer", "worker", "operator", "reader")
NOTHING: Final = ("-", "-", "-", "-")
HIDDEN: Final = frozenset({"args", "headers", "result", "traceback", "payload"})

_ENQUEUE: Final = ("X", "X", "X", "-")
_OPERATE: Final = ("-", "-", "X", "-")
_WORK: Final = ("-", "X", "-", "-")
_LOOK: Final = ("-", "X", "X", "X")
_VIEW: Final = ("-", "S", "S", "S")

RELATIONS: Final[dict[str, tuple[str, str, str, str]]] = {
    "jobs": ("-", "SUD", "S", "-"),
    "claims": ("-", "SIUD", "S", "S"),
    "job_history": ("-", "SI", "S", "s"),
    "job_transitions": ("-", "SI", "S", "S"),
    # `pgqueue doctor` asks whether they are empty.
    "job_history_default": ("-", "-", "S", "-"),
    "job_transitions_default": ("-", "-", "S", "-"),
    "dead_letter_jobs": ("-", "SI", "S", "s"),
    "dedup_keys": ("-", "SIUD", "S", "-"),
    "stats_minutely": ("-", "SIUD", "S", "S"),
    "stats_progress": _VIEW,
    "history_sweeps": ("-", "-", "S", "S"),
    "upkeep_duties": ("-", "SIU", "S", "S"),
    "held_summary": _VIEW,
    "upkeep_status": _VIEW,
    "schedules": ("-", "SIU", "S", "S"),
    "schedule_runs": ("-", "SIUD", "S", "S"),
    "queues": ("-", "SI", "S", "S"),
    "tasks": ("-", "SIU", "S", "S"),
    "workers": ("-", "SIUD", "S", "S"),
    "sleepers": ("-", "SIUD", "S", "S"),
    "operator_audit": ("-", "-", "S", "S"),
    "alert_rules": _VIEW,
    "alert_events": _VIEW,
    "alert_deliveries": ("-", "SU", "S", "S"),
    "alert_evaluations": _VIEW,
    "shipped_alert_rules": _VIEW,
    "alembic_version": ("S", "S", "S", "S"),
    "queue_health": _VIEW,
    "running_jobs": _VIEW,
    "dead_letter_summary": _VIEW,
    "schedule_status": _VIEW,
    "job_seq": ("-", "u", "-", "-"),
    # Numbers of identity columns: an INSERT needs no right on them.
    "job_transitions_id_seq": NOTHING,
    "operator_audit_id_seq": NOTHING,
    "alert_rules_id_seq": NOTHING,
    "alert_events_id_seq": NOTHING,
}

FUNCTIONS: Final[dict[str, tuple[str, str, str, str]]] = {
    "enqueue": _ENQUEUE,
    "enqueue_many": _ENQUEUE,
    "enqueue_job": _ENQUEUE,
    "enqueue_jobs": _ENQUEUE,
    "put_job": _ENQUEUE,
    "put_jobs": _ENQUEUE,
    "enqueue_receipt": _ENQUEUE,
    "enqueue_outcome": _ENQUEUE,
    "cancel": _ENQUEUE,
    "run_now": _OPERATE,
    "reschedule": _OPERATE,
    "redrive": _OPERATE,
    "discard": _OPERATE,
    "pause": _OPERATE,
    "resume": _OPERATE,
    "note_operation": _OPERATE,
    "pause_schedule": _OPERATE,
    "resume_schedule": _OPERATE,
    "run_schedule": _OPERATE,
    "delete_schedule": _OPERATE,
    "put_schedule": ("-", "X", "X", "-"),
    "tick_schedule": _WORK,
    "prune_orphans": _WORK,
    "set_queue": _OPERATE,
    "register_queues": _WORK,
    "paused_queues": _WORK,
    "evaluate_alerts": ("-", "X", "X", "-"),
    "ack_alert": _OPERATE,
    "set_alert_rule": _OPERATE,
    "restore_alert_rules": _OPERATE,
    "wake": _WORK,
    "assert_settled": _WORK,
    "ensure_partitions": _WORK,
    "drop_partition": _WORK,
    "prune_default_partitions": _WORK,
    "sweep_history": _WORK,
    "prune_redriven": _WORK,
    "discard_old_letters": _WORK,
    "summarize_days": _WORK,
    "roll_up": _WORK,
    "recount": _WORK,
    "bucket_bounds": _LOOK,
    "bucket_percentile": _LOOK,
    "work_stats": _LOOK,
    "keep_history": _OPERATE,
    "job_timeline": _LOOK,
    "role_rights": ("-", "-", "X", "X"),
    # Called by other functions only, with their rights.
    "alert_signals": NOTHING,
    "check_job": NOTHING,
    "check_key": NOTHING,
    "check_headers": NOTHING,
    "check_args": NOTHING,
    "check_options": NOTHING,
    "take_key": NOTHING,
    "window_end": NOTHING,
    "batch_key": NOTHING,
    "count_attempts": NOTHING,
    "count_minutes": NOTHING,
    "merge_minutes": NOTHING,
    "enqueue_scheduled": NOTHING,
    "grant_roles": NOTHING,
}
