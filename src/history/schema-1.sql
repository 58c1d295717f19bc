-- One row for each task, however many agents do it. Times are microseconds since 1970, in UTC.
CREATE TABLE tasks (
  task        TEXT PRIMARY KEY NOT NULL,
  addressed   TEXT NOT NULL,
  sender      INTEGER NOT NULL,
  key         TEXT,
  retry_of    TEXT,
  text        TEXT NOT NULL,
  environment TEXT NOT NULL,
  created     INTEGER NOT NULL,
  deadline    INTEGER
) STRICT;

-- One row for each task and place where it is done.
CREATE TABLE records (
  id              INTEGER PRIMARY KEY,
  task            TEXT NOT NULL REFERENCES tasks (task) ON DELETE CASCADE,
  slot            TEXT NOT NULL,
  agent           TEXT,
  state           TEXT NOT NULL,
  open            INTEGER NOT NULL,
  reason          TEXT,
  attempt         INTEGER NOT NULL,
  handed          INTEGER NOT NULL,
  taken_back      INTEGER NOT NULL,
  queued          INTEGER NOT NULL,
  started         INTEGER,
  finished        INTEGER,
  exit            INTEGER,
  signal          INTEGER,
  user_usec       INTEGER,
  system_usec     INTEGER,
  memory_peak     INTEGER,
  command         TEXT,
  output          TEXT,
  truncated       INTEGER NOT NULL,
  result_path     TEXT,
  stream          TEXT,
  sequence        INTEGER,
  given_stream    TEXT,
  given_sequence  INTEGER,
  result_stream   TEXT,
  result_sequence INTEGER,
  decided         INTEGER NOT NULL,
  UNIQUE (task, slot)
) STRICT;
CREATE INDEX records_by_time  ON records (queued);
CREATE INDEX records_by_agent ON records (agent, queued);
CREATE INDEX records_by_end   ON records (finished) WHERE open = 0;
CREATE INDEX records_failed   ON records (finished) WHERE state = 'failed';
CREATE INDEX records_open     ON records (queued) WHERE open = 1;

-- What agents handed in and does not count. The newest are kept.
CREATE TABLE strays (
  id       INTEGER PRIMARY KEY AUTOINCREMENT,
  at       INTEGER NOT NULL,
  agent    TEXT NOT NULL,
  task     TEXT,
  why      TEXT NOT NULL,
  stream   TEXT NOT NULL,
  sequence INTEGER NOT NULL,
  UNIQUE (stream, sequence)
) STRICT;

CREATE TABLE meta (
  name  TEXT PRIMARY KEY NOT NULL,
  value INTEGER NOT NULL
) STRICT;
