BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE blobs (
	digest VARCHAR(64) NOT NULL, 
	data BLOB NOT NULL, 
	created BIGINT NOT NULL, 
	PRIMARY KEY (digest)
);
INSERT INTO "blobs" VALUES('26cc73f9fbf623d9a49bbf3f3d88f70195f2de68d7f25b5161f6700e6644cf44',X'74656E736F7273',1795000002000006);
INSERT INTO "blobs" VALUES('f4ee1b16a2b11ab1c9831e13ba08ecb79ef415c6e4dd0f25edca8ac64a82d651',X'7B22706F6C696379223A20317D',1795000003000009);
INSERT INTO "blobs" VALUES('482512685ee5a657e32e67b9e7f8a50e9fde9f3cc0f7c72e614b7f76c1e9a014',X'7B22706F6C696379223A20322C20226E616D65223A2022C3A9227D',1795000005000015);
INSERT INTO "blobs" VALUES('92473e976b82a7533986f1b8aa449430293f8d8bc65d72157440abbaa543daa2',X'00FF00FF00FF00FF00FF00FF00FF00FF',1795000009000027);
CREATE TABLE decisions (
	run_id INTEGER NOT NULL, 
	seq BIGINT NOT NULL, 
	step BIGINT NOT NULL, 
	observation BLOB NOT NULL, 
	allowed TEXT, 
	explore BIGINT, 
	origin VARCHAR(16) NOT NULL, 
	entry INTEGER NOT NULL, 
	decision TEXT NOT NULL, 
	probability DOUBLE, 
	value DOUBLE, 
	issued BIGINT NOT NULL, 
	PRIMARY KEY (run_id, seq), 
	FOREIGN KEY(run_id) REFERENCES runs (id)
)
 WITHOUT ROWID

;
INSERT INTO "decisions" VALUES(1,0,0,X'CDCCCC3D000080BF00000000','[0,2,3]',9223372036854775807,'server',2,'{"method":"cutmix","params":{},"probability":1.0}',3.00000000000000044408e-01,-1.0e-300,1795000000000000);
INSERT INTO "decisions" VALUES(1,1,10,X'CDCCCC3D000080BF2549123E',NULL,NULL,'server',2,'{"method":"cutmix","params":{},"probability":1.0}',3.00000000000000044408e-01,NULL,1795000000000001);
INSERT INTO "decisions" VALUES(1,2,20,X'CDCCCC3D000080BF2549923E','[0,2,3]',9223372036854775807,'held',2,'{"method":"cutmix","params":{},"probability":1.0}',NULL,NULL,1795000000000002);
INSERT INTO "decisions" VALUES(1,9007199254740991,90071992547409910,X'CDCCCC3D000080BF25499258','[0,2,3]',0,'snapshot',2,'{"method":"cutmix","params":{},"probability":1.0}',4.94065645841247e-324,-1.0e-300,10802199254740991);
INSERT INTO "decisions" VALUES(2,0,0,X'CDCCCC3D000080BF00000000','[0,2,3]',9223372036854775807,'server',2,'{"method":"cutmix","params":{},"probability":1.0}',3.00000000000000044408e-01,-1.0e-300,1795000000000000);
INSERT INTO "decisions" VALUES(2,1,10,X'CDCCCC3D000080BF2549123E',NULL,NULL,'server',2,'{"method":"cutmix","params":{},"probability":1.0}',3.00000000000000044408e-01,NULL,1795000000000001);
INSERT INTO "decisions" VALUES(2,2,20,X'CDCCCC3D000080BF2549923E','[0,2,3]',9223372036854775807,'held',2,'{"method":"cutmix","params":{},"probability":1.0}',NULL,NULL,1795000000000002);
INSERT INTO "decisions" VALUES(2,9007199254740991,90071992547409910,X'CDCCCC3D000080BF25499258','[0,2,3]',0,'snapshot',2,'{"method":"cutmix","params":{},"probability":1.0}',4.94065645841247e-324,-1.0e-300,10802199254740991);
INSERT INTO "decisions" VALUES(3,0,0,X'CDCCCC3D000080BF00000000','[0,2,3]',9223372036854775807,'server',2,'{"method":"cutmix","params":{},"probability":1.0}',3.00000000000000044408e-01,-1.0e-300,1795000000000000);
INSERT INTO "decisions" VALUES(3,1,10,X'CDCCCC3D000080BF2549123E',NULL,NULL,'server',2,'{"method":"cutmix","params":{},"probability":1.0}',3.00000000000000044408e-01,NULL,1795000000000001);
INSERT INTO "decisions" VALUES(3,2,20,X'CDCCCC3D000080BF2549923E','[0,2,3]',9223372036854775807,'held',2,'{"method":"cutmix","params":{},"probability":1.0}',NULL,NULL,1795000000000002);
INSERT INTO "decisions" VALUES(3,9007199254740991,90071992547409910,X'CDCCCC3D000080BF25499258','[0,2,3]',0,'snapshot',2,'{"method":"cutmix","params":{},"probability":1.0}',4.94065645841247e-324,-1.0e-300,10802199254740991);
CREATE TABLE feedback (
	run_id BIGINT NOT NULL, 
	seq BIGINT NOT NULL, 
	data TEXT NOT NULL, 
	received BIGINT NOT NULL, 
	PRIMARY KEY (run_id, seq), 
	FOREIGN KEY(run_id, seq) REFERENCES decisions (run_id, seq)
)
 WITHOUT ROWID

;
INSERT INTO "feedback" VALUES(1,0,'{"n":-1e+300,"val_accuracy":0.30000000000000004}',5);
INSERT INTO "feedback" VALUES(1,2,'{"val_accuracy":0.3333333333333333}',9007199254740992);
INSERT INTO "feedback" VALUES(2,0,'{"n":-1e+300,"val_accuracy":0.30000000000000004}',5);
INSERT INTO "feedback" VALUES(2,2,'{"val_accuracy":0.3333333333333333}',9007199254740992);
INSERT INTO "feedback" VALUES(3,0,'{"n":-1e+300,"val_accuracy":0.30000000000000004}',5);
INSERT INTO "feedback" VALUES(3,2,'{"val_accuracy":0.3333333333333333}',9007199254740992);
CREATE TABLE policies (
	id INTEGER NOT NULL, 
	project_id INTEGER NOT NULL, 
	name VARCHAR(63) NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (project_id, name), 
	FOREIGN KEY(project_id) REFERENCES projects (id)
);
INSERT INTO "policies" VALUES(1,1,'default');
INSERT INTO "policies" VALUES(2,2,'default');
CREATE TABLE policy_aliases (
	policy_id INTEGER NOT NULL, 
	name VARCHAR(63) NOT NULL, 
	version_id INTEGER NOT NULL, 
	revision INTEGER NOT NULL, 
	updated BIGINT NOT NULL, 
	PRIMARY KEY (policy_id, name), 
	FOREIGN KEY(policy_id) REFERENCES policies (id), 
	FOREIGN KEY(version_id) REFERENCES policy_versions (id)
);
INSERT INTO "policy_aliases" VALUES(1,'default',2,2,1795000013000039);
INSERT INTO "policy_aliases" VALUES(2,'default',4,1,1795000011000033);
CREATE TABLE policy_versions (
	id INTEGER NOT NULL, 
	policy_id INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	document VARCHAR(64) NOT NULL, 
	tensors VARCHAR(64) NOT NULL, 
	created BIGINT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (policy_id, number), 
	UNIQUE (policy_id, document), 
	FOREIGN KEY(policy_id) REFERENCES policies (id), 
	FOREIGN KEY(document) REFERENCES blobs (digest), 
	FOREIGN KEY(tensors) REFERENCES blobs (digest)
);
INSERT INTO "policy_versions" VALUES(1,1,1,'f4ee1b16a2b11ab1c9831e13ba08ecb79ef415c6e4dd0f25edca8ac64a82d651','26cc73f9fbf623d9a49bbf3f3d88f70195f2de68d7f25b5161f6700e6644cf44',1795000004000012);
INSERT INTO "policy_versions" VALUES(2,1,2,'482512685ee5a657e32e67b9e7f8a50e9fde9f3cc0f7c72e614b7f76c1e9a014','26cc73f9fbf623d9a49bbf3f3d88f70195f2de68d7f25b5161f6700e6644cf44',1795000006000018);
INSERT INTO "policy_versions" VALUES(3,2,1,'f4ee1b16a2b11ab1c9831e13ba08ecb79ef415c6e4dd0f25edca8ac64a82d651','26cc73f9fbf623d9a49bbf3f3d88f70195f2de68d7f25b5161f6700e6644cf44',1795000007000021);
INSERT INTO "policy_versions" VALUES(4,2,2,'482512685ee5a657e32e67b9e7f8a50e9fde9f3cc0f7c72e614b7f76c1e9a014','26cc73f9fbf623d9a49bbf3f3d88f70195f2de68d7f25b5161f6700e6644cf44',1795000008000024);
CREATE TABLE projects (
	id INTEGER NOT NULL, 
	name VARCHAR(63) NOT NULL, 
	created BIGINT NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (name)
);
INSERT INTO "projects" VALUES(1,'default',1795000000000000);
INSERT INTO "projects" VALUES(2,'other',1795000001000003);
CREATE TABLE runs (
	id INTEGER NOT NULL, 
	project_id INTEGER NOT NULL, 
	name VARCHAR(63) NOT NULL, 
	version_id INTEGER NOT NULL, 
	alias VARCHAR(63) NOT NULL, 
	spec TEXT NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	created BIGINT NOT NULL, 
	ended BIGINT, 
	PRIMARY KEY (id), 
	UNIQUE (project_id, name), 
	FOREIGN KEY(project_id) REFERENCES projects (id), 
	FOREIGN KEY(version_id) REFERENCES policy_versions (id)
);
INSERT INTO "runs" VALUES(1,1,'ended',1,'default','{"label/data":"digits","num_classes":10,"num_examples":null,"total_steps":100}','finished',1795000012000036,1795000016000048);
INSERT INTO "runs" VALUES(2,1,'active',2,'default','{"label/data":"digits","num_classes":10,"num_examples":7,"total_steps":100}','active',1795000014000042,NULL);
INSERT INTO "runs" VALUES(3,2,'ended',4,'default','{"label/data":"digits","num_classes":10,"num_examples":null,"total_steps":100}','finished',1795000015000045,1795000017000051);
COMMIT;
