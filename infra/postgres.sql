-- Roles and databases of Prefect and MLflow; run by psql as the superuser. What is there already stays.
-- Each service owns its database and can connect to no other; the auditor reads MLflow's registry and nothing else.
-- Passwords come from the environment, so that none is written into this file or into a command.
SET client_min_messages = warning;
\getenv prefect_password PREFECT_DB_PASSWORD
\getenv mlflow_password MLFLOW_DB_PASSWORD
\getenv auditor_password AUDITOR_DB_PASSWORD

SELECT format('CREATE ROLE prefect LOGIN PASSWORD %L', :'prefect_password')
    WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'prefect') \gexec
SELECT format('CREATE ROLE mlflow LOGIN PASSWORD %L', :'mlflow_password')
    WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'mlflow') \gexec
SELECT format('CREATE ROLE auditor LOGIN PASSWORD %L', :'auditor_password')
    WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'auditor') \gexec

SELECT 'CREATE DATABASE prefect OWNER prefect' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'prefect') \gexec
SELECT 'CREATE DATABASE mlflow OWNER mlflow' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'mlflow') \gexec
SELECT 'CREATE DATABASE mlflow_auth OWNER mlflow'
    WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'mlflow_auth') \gexec

-- PostgreSQL lets everybody connect to a database, unless he is told not to.
REVOKE ALL ON DATABASE prefect, mlflow, mlflow_auth, postgres, template1 FROM PUBLIC;
GRANT CONNECT ON DATABASE mlflow TO auditor;
GRANT pg_read_all_data TO auditor;
ALTER ROLE auditor SET default_transaction_read_only = on;
