-- The demo's business tables. None of them is unique by ride: if a payment were captured twice, PROOF must see it.
CREATE SCHEMA rides_demo;

CREATE TABLE rides_demo.rides (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  status text NOT NULL DEFAULT 'requested',
  amount_cents integer NOT NULL,
  card text NOT NULL,
  booked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  ended_at timestamptz,
  driver_id integer,
  fee_job_id bigint,
  capture_job_id bigint,
  CONSTRAINT rides_status_check CHECK (status IN ('requested', 'confirmed', 'completed', 'cancelled'))
);
COMMENT ON TABLE rides_demo.rides IS 'Rides, from booking to completion or cancellation';
COMMENT ON COLUMN rides_demo.rides.fee_job_id IS 'The deferred job that charges a fee if no driver confirms';
COMMENT ON COLUMN rides_demo.rides.capture_job_id IS 'The job that captures the payment, enqueued in the transaction that completed the ride';

CREATE TABLE rides_demo.captures (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  ride_id bigint NOT NULL,
  job_id bigint NOT NULL,
  amount_cents integer NOT NULL,
  captured_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX captures_ride_id_idx ON rides_demo.captures (ride_id);
COMMENT ON TABLE rides_demo.captures IS 'Captured payments; PROOF says that no ride has two';

CREATE TABLE rides_demo.ledger (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  job_id bigint NOT NULL,
  ride_id bigint NOT NULL,
  kind text NOT NULL CHECK (kind IN ('capture', 'fee')),
  amount_cents integer NOT NULL,
  booked_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX ledger_job_id_idx ON rides_demo.ledger (job_id);
COMMENT ON TABLE rides_demo.ledger IS 'One row per captured payment and per fee, written in the transaction of the job that did it';

CREATE TABLE rides_demo.receipts (
  ride_id bigint NOT NULL,
  job_id bigint NOT NULL,
  sent_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE rides_demo.receipts IS 'Receipts sent';

CREATE TABLE rides_demo.fees (
  ride_id bigint NOT NULL,
  job_id bigint NOT NULL,
  amount_cents integer NOT NULL,
  charged_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE rides_demo.fees IS 'Cancellation fees charged';

CREATE TABLE rides_demo.drivers (
  id integer PRIMARY KEY,
  rides integer NOT NULL DEFAULT 0,
  rides_paid integer NOT NULL DEFAULT 0,
  week integer NOT NULL DEFAULT 0,
  place integer
);
INSERT INTO rides_demo.drivers (id) SELECT generate_series(1, 40);
COMMENT ON TABLE rides_demo.drivers IS 'Drivers: rides completed, rides that incentives were paid for, weeks closed, place in the ranking';

CREATE TABLE rides_demo.promos (
  code text PRIMARY KEY,
  last_day date NOT NULL,
  expired_by bigint
);
INSERT INTO rides_demo.promos (code, last_day) SELECT 'RIDE' || n, current_date - 1 + (n / 50) FROM generate_series(1, 99) n;
COMMENT ON TABLE rides_demo.promos IS 'Promo codes, and the job that took their value away';

CREATE TABLE rides_demo.surges (
  job_id bigint NOT NULL,
  waiting integer NOT NULL,
  set_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE rides_demo.surges IS 'How many riders waited, minute by minute of the story';

CREATE TABLE rides_demo.incentives (
  driver_id integer NOT NULL,
  week integer NOT NULL,
  job_id bigint NOT NULL,
  amount_cents integer NOT NULL
);
COMMENT ON TABLE rides_demo.incentives IS 'Weekly payments to drivers; PROOF says that nobody has two for a week';

CREATE TABLE rides_demo.fires (
  schedule text NOT NULL,
  fire_at timestamptz NOT NULL,
  job_id bigint NOT NULL
);
COMMENT ON TABLE rides_demo.fires IS 'Which fire of a schedule was served by which job, written in the job''s transaction';

CREATE TABLE rides_demo.heatmap (
  cell integer PRIMARY KEY,
  rides integer NOT NULL,
  calls integer NOT NULL DEFAULT 1
);
COMMENT ON TABLE rides_demo.heatmap IS 'Rides that ended in each cell, and in how many batches they were counted';

CREATE TABLE rides_demo.charges (
  key text PRIMARY KEY,
  ride_id bigint NOT NULL,
  amount_cents integer NOT NULL,
  calls integer NOT NULL DEFAULT 1
);
CREATE INDEX charges_ride_id_idx ON rides_demo.charges (ride_id);
COMMENT ON TABLE rides_demo.charges IS 'What the payment gateway charged, by idempotency key; it is not of this service';

CREATE TABLE rides_demo.events (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  uid uuid NOT NULL,
  topic text NOT NULL,
  ride_id bigint NOT NULL,
  arrived_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX events_ride_id_idx ON rides_demo.events (ride_id);
COMMENT ON TABLE rides_demo.events IS 'What the partner''s webhook got, repetitions too; it is not of this service';

CREATE TABLE rides_demo.incidents (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at timestamptz NOT NULL DEFAULT clock_timestamp(),
  kind text NOT NULL CHECK (kind IN ('kill', 'cut')),
  target text NOT NULL
);
COMMENT ON TABLE rides_demo.incidents IS 'What --chaos did: processes killed with SIGKILL, connections cut';
