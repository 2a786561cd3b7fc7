-- Roles and databases of Prefect and MLflow; run by psql as the superuser. What is there already stays.
-- Passwords come from the environment, so that none is written into this file or into a command.
\getenv prefect_password PREFECT_DB_PASSWORD
\getenv mlflow_password MLFLOW_DB_PASSWORD

SELECT format('CREATE ROLE prefect LOGIN PASSWORD %L', :'prefect_password')
    WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'prefect') \gexec
SELECT format('CREATE ROLE mlflow LOGIN PASSWORD %L', :'mlflow_password')
    WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'mlflow') \gexec

SELECT 'CREATE DATABASE prefect OWNER prefect' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'prefect') \gexec
SELECT 'CREATE DATABASE mlflow OWNER mlflow' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'mlflow') \gexec
SELECT 'CREATE DATABASE mlflow_auth OWNER mlflow'
    WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'mlflow_auth') \gexec
