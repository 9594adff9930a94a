BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE exchanges (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	platform TEXT NOT NULL, 
	channel TEXT NOT NULL, 
	thread TEXT, 
	message TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	status TEXT NOT NULL, 
	seed BIGINT NOT NULL, 
	author_platform TEXT NOT NULL, 
	author TEXT NOT NULL, 
	author_name TEXT NOT NULL, 
	author_roles JSON NOT NULL, 
	author_is_bot BOOLEAN NOT NULL, 
	text TEXT NOT NULL, 
	quoted TEXT, 
	sent_at DATETIME NOT NULL, 
	server TEXT, 
	is_direct BOOLEAN NOT NULL, 
	locale TEXT, 
	answer TEXT, 
	notice TEXT, 
	reason TEXT, 
	prompt_tokens INTEGER, 
	completion_tokens INTEGER, 
	parts JSON NOT NULL, 
	failure TEXT, 
	CONSTRAINT uq_exchanges_platform_channel_message UNIQUE (platform, channel, message)
);
INSERT INTO "exchanges" VALUES(1,'discord','c1',NULL,'q1','chat','delivered',1821380584774605573,'discord','1','Mei','[]',0,'delivered question',NULL,'2026-11-20 12:00:00.000000',NULL,0,NULL,'delivered answer','','stop',3,4,'["m1"]',NULL);
INSERT INTO "exchanges" VALUES(2,'discord','c2',NULL,'q2','chat','cleared',4990817625391760383,'discord','','','[]',0,'',NULL,'2026-11-20 12:00:00.000000',NULL,0,NULL,NULL,NULL,NULL,NULL,NULL,'[]',NULL);
INSERT INTO "exchanges" VALUES(3,'discord','c1',NULL,'q3','chat','failed',2219328739797167738,'discord','1','Mei','[]',0,'failed question',NULL,'2026-11-20 12:00:00.000000',NULL,0,NULL,NULL,NULL,NULL,NULL,NULL,'[]','the channel is gone');
INSERT INTO "exchanges" VALUES(4,'discord','c1',NULL,'q4','chat','answered',5484839426649498788,'discord','1','Mei','[]',0,'answered question',NULL,'2026-11-20 12:00:00.000000',NULL,0,NULL,'an answer that was not delivered','','stop',0,0,'["m4"]',NULL);
INSERT INTO "exchanges" VALUES(5,'discord','c1',NULL,'q5','chat','open',3132102173673117142,'discord','1','Mei','[]',0,'open question',NULL,'2026-11-20 12:00:00.000000',NULL,0,NULL,NULL,NULL,NULL,NULL,NULL,'["m5"]',NULL);
INSERT INTO "exchanges" VALUES(6,'discord','c1','t1','q6','chat','open',2498881613199110395,'discord','1','Mei','[]',0,'another open question',NULL,'2026-11-20 12:00:00.000000',NULL,0,NULL,NULL,NULL,NULL,NULL,NULL,'[]',NULL);
INSERT INTO "exchanges" VALUES(7,'discord','c1',NULL,'q7','command','open',165808679921183433,'discord','1','Mei','[]',0,'/status',NULL,'2026-11-20 12:00:00.000000',NULL,0,NULL,NULL,NULL,NULL,NULL,NULL,'[]',NULL);
CREATE INDEX ix_exchanges_platform_channel_thread_id ON exchanges (platform, channel, thread, id);
CREATE INDEX ix_exchanges_platform_status ON exchanges (platform, status);
CREATE INDEX ix_exchanges_author_platform_author ON exchanges (author_platform, author);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('exchanges',7);
COMMIT;
