-- What people did.

-- name: list_deeds
-- purpose:   deeds, newest first
-- called by: control/audit
-- guard:     none
-- locks:     none
-- index:     the primary key, backwards over at most 100,000 rows
-- returns:   one row per deed
SELECT a.id, a.at, a.actor, a.db_role, a.via, a.action, a.target, a.reason, a.matched, a.changed, a.detail
FROM (SELECT w.* FROM pgqueue.operator_audit w WHERE w.id < %(before)s ORDER BY w.id DESC LIMIT 100000) a
WHERE CASE WHEN %(path)s::text IS NULL THEN true ELSE jsonb_path_match(jsonb_build_object('id', a.id, 'actor', a.actor, 'role', a.db_role,
      'via', a.via, 'action', a.action, 'target', a.target, 'age', date_part('epoch', statement_timestamp() - a.at),
      'created', date_part('epoch', a.at)), %(path)s::jsonpath, %(variables)s::jsonb, true) END
  AND (%(words)s::jsonb IS NULL OR NOT EXISTS (SELECT FROM jsonb_array_elements(%(words)s::jsonb) AS w (term)
    WHERE (w.term -> 0)::boolean = EXISTS (SELECT FROM jsonb_array_elements_text(w.term -> 1) AS x (word)
      WHERE strpos(lower(coalesce(a.reason, '')), lower(x.word)) > 0)))
ORDER BY a.id DESC
LIMIT %(limit)s

-- name: deeds_window
-- purpose:   where the window of list_deeds ends
-- called by: control/audit, when a page came back short
-- guard:     none
-- locks:     none
-- index:     the primary key
-- returns:   (id bigint), no row if the window held everything
SELECT w.id FROM pgqueue.operator_audit w WHERE w.id < %(before)s ORDER BY w.id DESC OFFSET 99999 LIMIT 1
