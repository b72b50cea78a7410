-- The four roles: which there are, and whether each has exactly its rights in this database.

-- name: roles_missing
-- purpose:   roles that this cluster lacks
-- called by: control/roles
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   names
SELECT w.name FROM unnest(ARRAY['pgqueue_producer', 'pgqueue_worker', 'pgqueue_operator', 'pgqueue_reader']) AS w (name)
WHERE to_regrole(w.name) IS NULL

-- name: roles_grant
-- purpose:   make the missing roles, if this login may, and grant each exactly its rights
-- called by: control/roles
-- guard:     the server's: only the owner of the schema, or a superuser, can grant
-- locks:     the catalog rows of the objects
-- index:     none
-- returns:   names of the roles that are still missing
SELECT g.name FROM pgqueue.grant_roles() AS g (name)

-- name: roles_script
-- purpose:   the same as SQL for an administrator
-- called by: control/roles
-- guard:     none
-- locks:     none
-- index:     none
-- returns:   (line text), in order
SELECT s.line FROM (
  SELECT 1 AS part, 0::bigint AS place, '-- As a role that may create roles:' AS line
  UNION ALL
  SELECT 1, w.place, CASE WHEN to_regrole(w.name) IS NULL THEN format('CREATE ROLE %I NOLOGIN;', w.name) ELSE format('-- %I is there', w.name) END
  FROM unnest(ARRAY['pgqueue_producer', 'pgqueue_worker', 'pgqueue_operator', 'pgqueue_reader']) WITH ORDINALITY AS w (name, place)
  UNION ALL
  SELECT 2, 0, format('-- As %I, who owns the schema, or a superuser, in database %I:', pg_get_userbyid(n.nspowner), current_database())
  FROM pg_namespace n WHERE n.nspname = 'pgqueue'
  UNION ALL
  SELECT 3, 0, 'SELECT * FROM pgqueue.grant_roles();'
) s ORDER BY s.part, s.place

-- name: roles_faults
-- purpose:   rights that a role lacks here, has beyond its own, or that Public has; and ways from a role to the owner
-- called by: control/roles
-- guard:     none
-- locks:     none
-- index:     none; it reads the catalogs
-- returns:   (object text, role text, privilege text, fault text): missing, unexpected, or owner
WITH ours AS (
  SELECT r.oid, r.rolname::text AS role FROM pg_roles r
  WHERE r.rolname IN ('pgqueue_producer', 'pgqueue_worker', 'pgqueue_operator', 'pgqueue_reader')
), wanted AS (
  SELECT w.kind || ' ' || w.object || coalesce('.' || nullif(c.name, ''), '') AS object, w.role, w.privilege
  FROM pgqueue.role_rights() w
  CROSS JOIN LATERAL unnest(coalesce(string_to_array(w.columns, ', '), ARRAY[''])) AS c (name)
  WHERE w.role IN (SELECT o.role FROM ours o)
), granted AS (
  SELECT 'SCHEMA ' || n.nspname AS object, a.grantee, a.privilege_type AS privilege
  FROM pg_namespace n CROSS JOIN LATERAL aclexplode(n.nspacl) a WHERE n.nspname = 'pgqueue' AND a.grantee <> n.nspowner
  UNION ALL
  SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE ' ELSE 'TABLE ' END || c.oid::regclass, a.grantee, a.privilege_type
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN LATERAL aclexplode(c.relacl) a
  WHERE n.nspname = 'pgqueue' AND a.grantee <> c.relowner
  UNION ALL
  SELECT 'TABLE ' || c.oid::regclass || '.' || quote_ident(t.attname), a.grantee, a.privilege_type
  FROM pg_attribute t JOIN pg_class c ON c.oid = t.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  CROSS JOIN LATERAL aclexplode(t.attacl) a
  WHERE n.nspname = 'pgqueue' AND NOT t.attisdropped AND a.grantee <> c.relowner
  UNION ALL
  SELECT 'FUNCTION ' || p.oid::regprocedure, a.grantee, a.privilege_type
  FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
  CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
  WHERE n.nspname = 'pgqueue' AND a.grantee <> p.proowner
), had AS (
  SELECT g.object, CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE o.role END AS role, g.privilege
  FROM granted g LEFT JOIN ours o ON o.oid = g.grantee WHERE g.grantee = 0 OR o.oid IS NOT NULL
)
SELECT w.object, w.role, w.privilege, 'missing' AS fault FROM (SELECT * FROM wanted EXCEPT SELECT * FROM had) w
UNION ALL
SELECT h.object, h.role, h.privilege, 'unexpected' FROM (SELECT * FROM had EXCEPT SELECT * FROM wanted) h
UNION ALL
SELECT 'SCHEMA pgqueue', o.role, pg_get_userbyid(n.nspowner), 'owner' FROM ours o, pg_namespace n
WHERE n.nspname = 'pgqueue' AND pg_has_role(o.oid, n.nspowner, 'MEMBER')
ORDER BY 4, 2, 1, 3
