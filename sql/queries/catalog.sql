-- What the database says our schema is, object by object, for comparing two databases (storage/drift).
-- Each row is (key text, facts jsonb). Left out on purpose: what our own four roles are granted (they belong to the
-- cluster and may be missing; roles.sql looks at them), day partitions (their number depends on the day),
-- the order of columns (a later revision adds at the end), the owner's own rights and NOT NULL as named
-- constraints (both differ between server versions and say nothing more), the version table (Alembic's own).

-- name: catalog_session
-- purpose:   definitions come out with every name qualified
-- called by: storage/drift, first statement of its transaction
-- returns:   nothing of use
SELECT pg_catalog.set_config('search_path', 'pg_catalog', true)

-- name: catalog_schema
-- purpose:   the schema itself and what it grants to objects to come
-- called by: storage/drift
-- returns:   (key text, facts jsonb)
SELECT 'schema ' || n.nspname, jsonb_build_object('comment', obj_description(n.oid, 'pg_namespace'), 'grants', g.list)
FROM pg_namespace n
CROSS JOIN LATERAL (
  SELECT coalesce(jsonb_agg(format('%s: %s', CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee) END, a.privilege_type)
    ORDER BY pg_get_userbyid(a.grantee), a.privilege_type), '[]') AS list
  FROM aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
      WHERE a.grantee NOT IN (SELECT n.nspowner UNION ALL SELECT o.oid FROM pg_roles o WHERE o.rolname IN ('pgqueue_producer', 'pgqueue_worker', 'pgqueue_operator', 'pgqueue_reader'))) g
WHERE n.nspname = 'pgqueue'
UNION ALL
SELECT format('default grants on %s', CASE d.defaclobjtype WHEN 'r' THEN 'tables' WHEN 'S' THEN 'sequences' WHEN 'f' THEN 'functions'
    WHEN 'T' THEN 'types' ELSE d.defaclobjtype::text END),
  jsonb_build_object('grants', (
    SELECT coalesce(jsonb_agg(format('%s: %s', CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee) END, a.privilege_type)
      ORDER BY pg_get_userbyid(a.grantee), a.privilege_type), '[]')
    FROM aclexplode(d.defaclacl) a
      WHERE a.grantee NOT IN (SELECT d.defaclrole UNION ALL SELECT o.oid FROM pg_roles o WHERE o.rolname IN ('pgqueue_producer', 'pgqueue_worker', 'pgqueue_operator', 'pgqueue_reader'))))
FROM pg_default_acl d JOIN pg_namespace n ON n.oid = d.defaclnamespace AND d.defaclrole = n.nspowner
WHERE n.nspname = 'pgqueue'

-- name: catalog_relations
-- purpose:   tables, views, sequences; a view's text as a hash without table aliases, which servers from 16 on leave out
-- called by: storage/drift
-- returns:   (key text, facts jsonb)
SELECT format('%s %s.%s', CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'table' WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
    WHEN 'S' THEN 'sequence' WHEN 'f' THEN 'foreign table' ELSE 'type' END, n.nspname, c.relname),
  jsonb_build_object(
    'comment', obj_description(c.oid, 'pg_class'),
    'owner', CASE WHEN c.relowner = n.nspowner THEN 'as the schema' ELSE pg_get_userbyid(c.relowner) END,
    'persistence', c.relpersistence,
    'options', (SELECT coalesce(jsonb_agg(o ORDER BY o), '[]') FROM unnest(c.reloptions) AS o),
    'partition key', pg_get_partkeydef(c.oid),
    'partition of', (SELECT i.inhparent::regclass::text FROM pg_inherits i WHERE i.inhrelid = c.oid),
    'partition bound', pg_get_expr(c.relpartbound, c.oid),
    'row security', c.relrowsecurity OR c.relforcerowsecurity,
    'definition', CASE WHEN c.relkind IN ('v', 'm') THEN
      left(encode(sha256(convert_to(regexp_replace(pg_get_viewdef(c.oid), '\m(?!pgqueue\.)[a-z_0-9]+\.|\s+', '', 'g'), 'UTF8')), 'hex'), 16) END,
    'sequence', (SELECT jsonb_build_array(format_type(s.seqtypid, NULL), s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle)
      FROM pg_sequence s WHERE s.seqrelid = c.oid),
    'grants', (
      SELECT coalesce(jsonb_agg(format('%s: %s', CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee) END, a.privilege_type)
        ORDER BY pg_get_userbyid(a.grantee), a.privilege_type), '[]')
      FROM aclexplode(c.relacl) a
      WHERE a.grantee NOT IN (SELECT c.relowner UNION ALL SELECT o.oid FROM pg_roles o WHERE o.rolname IN ('pgqueue_producer', 'pgqueue_worker', 'pgqueue_operator', 'pgqueue_reader'))))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'pgqueue' AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c') AND c.relname <> 'alembic_version'
  AND NOT (c.relispartition AND c.relname ~ '_[0-9]{8}$')

-- name: catalog_columns
-- purpose:   columns of tables and views; a partition has its parent's
-- called by: storage/drift
-- returns:   (key text, facts jsonb)
SELECT format('column %s.%s.%s', n.nspname, c.relname, a.attname),
  jsonb_build_object(
    'comment', col_description(c.oid, a.attnum),
    'type', format_type(a.atttypid, a.atttypmod),
    'collation', (SELECT l.collname FROM pg_collation l JOIN pg_type t ON t.oid = a.atttypid
      WHERE l.oid = a.attcollation AND a.attcollation <> t.typcollation),
    'not null', a.attnotnull,
    'default', pg_get_expr(d.adbin, d.adrelid),
    'identity', a.attidentity,
    'generated', a.attgenerated,
    'storage', a.attstorage,
    'compression', a.attcompression,
    'options', (SELECT coalesce(jsonb_agg(o ORDER BY o), '[]') FROM unnest(a.attoptions) AS o),
    'grants', (
      SELECT coalesce(jsonb_agg(format('%s: %s', CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(g.grantee) END, g.privilege_type)
        ORDER BY pg_get_userbyid(g.grantee), g.privilege_type), '[]')
      FROM aclexplode(a.attacl) g
      WHERE g.grantee NOT IN (SELECT c.relowner UNION ALL SELECT o.oid FROM pg_roles o WHERE o.rolname IN ('pgqueue_producer', 'pgqueue_worker', 'pgqueue_operator', 'pgqueue_reader'))))
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE n.nspname = 'pgqueue' AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c') AND a.attnum > 0 AND NOT a.attisdropped
  AND c.relname <> 'alembic_version' AND NOT c.relispartition

-- name: catalog_constraints
-- purpose:   checks, keys, exclusions; a partition has its parent's. A check without its parentheses: the server
--            writes fewer of them after a dump was restored
-- called by: storage/drift
-- returns:   (key text, facts jsonb)
SELECT format('constraint %s.%s.%s', n.nspname, c.relname, k.conname),
  jsonb_build_object('comment', obj_description(k.oid, 'pg_constraint'), 
    'definition', CASE k.contype WHEN 'c' THEN translate(pg_get_constraintdef(k.oid), '()', '') ELSE pg_get_constraintdef(k.oid) END, 'validated', k.convalidated)
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'pgqueue' AND k.contype <> 'n' AND c.relname <> 'alembic_version' AND NOT c.relispartition

-- name: catalog_indexes
-- purpose:   indexes, those of keys included
-- called by: storage/drift
-- returns:   (key text, facts jsonb)
SELECT format('index %s.%s', n.nspname, x.relname),
  jsonb_build_object('comment', obj_description(x.oid, 'pg_class'), 'definition', pg_get_indexdef(x.oid), 'valid', i.indisvalid)
FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'pgqueue' AND c.relname <> 'alembic_version' AND c.relkind <> 't'
  AND NOT (c.relispartition AND c.relname ~ '_[0-9]{8}$')

-- name: catalog_functions
-- purpose:   functions and procedures; the body as a hash, of what a body in standard SQL is parsed to as well
-- called by: storage/drift
-- returns:   (key text, facts jsonb)
SELECT format('function %s.%s(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)),
  jsonb_build_object(
    'comment', obj_description(p.oid, 'pg_proc'),
    'owner', CASE WHEN p.proowner = n.nspowner THEN 'as the schema' ELSE pg_get_userbyid(p.proowner) END,
    'arguments', pg_get_function_arguments(p.oid),
    'result', pg_get_function_result(p.oid),
    'language', l.lanname,
    'kind', p.prokind,
    'body', left(encode(sha256(convert_to(coalesce(
      regexp_replace(pg_get_function_sqlbody(p.oid), '\m(?!pgqueue\.)[a-z_0-9]+\.|\s+', '', 'g'), p.prosrc), 'UTF8')), 'hex'), 16),
    'volatile', p.provolatile,
    'parallel', p.proparallel,
    'strict', p.proisstrict,
    'leakproof', p.proleakproof,
    'security definer', p.prosecdef,
    'settings', (SELECT coalesce(jsonb_agg(s ORDER BY s), '[]') FROM unnest(p.proconfig) AS s),
    'grants', (
      SELECT coalesce(jsonb_agg(format('%s: %s', CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee) END, a.privilege_type)
        ORDER BY pg_get_userbyid(a.grantee), a.privilege_type), '[]')
      FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
      WHERE a.grantee NOT IN (SELECT p.proowner UNION ALL SELECT o.oid FROM pg_roles o WHERE o.rolname IN ('pgqueue_producer', 'pgqueue_worker', 'pgqueue_operator', 'pgqueue_reader'))))
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
WHERE n.nspname = 'pgqueue'

-- name: catalog_others
-- purpose:   what the schema has none of today: triggers, policies, rules, statistics, enums and domains
-- called by: storage/drift
-- returns:   (key text, facts jsonb)
SELECT format('trigger %s.%s.%s', n.nspname, c.relname, t.tgname), jsonb_build_object('definition', pg_get_triggerdef(t.oid), 'enabled', t.tgenabled)
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'pgqueue' AND NOT t.tgisinternal AND NOT (c.relispartition AND c.relname ~ '_[0-9]{8}$')
UNION ALL
SELECT format('policy %s.%s.%s', n.nspname, c.relname, p.polname),
  jsonb_build_object('command', p.polcmd, 'permissive', p.polpermissive, 'using', pg_get_expr(p.polqual, p.polrelid),
    'check', pg_get_expr(p.polwithcheck, p.polrelid))
FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'pgqueue'
UNION ALL
SELECT format('rule %s.%s.%s', n.nspname, c.relname, r.rulename), jsonb_build_object('definition', pg_get_ruledef(r.oid))
FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'pgqueue' AND r.rulename <> '_RETURN'
UNION ALL
SELECT format('statistics %s.%s', n.nspname, s.stxname), jsonb_build_object('definition', pg_get_statisticsobjdef(s.oid))
FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace
WHERE n.nspname = 'pgqueue'
UNION ALL
SELECT format('type %s.%s', n.nspname, t.typname),
  jsonb_build_object('base', format_type(nullif(t.typbasetype, 0), t.typtypmod), 'not null', t.typnotnull, 'default', t.typdefault,
    'labels', (SELECT jsonb_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid))
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
WHERE n.nspname = 'pgqueue' AND t.typtype IN ('e', 'd', 'r')
