-- The demo's business tables. None of them is unique by ride: if a payment were captured twice, PROOF must see it.
CREATE SCHEMA rides_demo;

CREATE TABLE rides_demo.rides (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  status text NOT NULL DEFAULT 'requested',
  amount_cents integer NOT NULL,
  card text NOT NULL,
  booked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  ended_at timestamptz,
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

CREATE TABLE rides_demo.incidents (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at timestamptz NOT NULL DEFAULT clock_timestamp(),
  kind text NOT NULL CHECK (kind IN ('kill', 'cut')),
  target text NOT NULL
);
COMMENT ON TABLE rides_demo.incidents IS 'What --chaos did: workers killed with SIGKILL, connections cut';
