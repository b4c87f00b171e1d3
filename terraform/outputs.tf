output "environment" {
  description = "The `FORKJOIN_*` environment of a service that enqueues."
  value       = local.environment
}

output "enqueuer" {
  description = "The e-mail address of the service account that a service which enqueues runs as."
  value       = google_service_account.this["enqueuer"].email
}

output "network" {
  description = "The `network` and `subnetwork` through which a service reaches Memorystore."
  value       = { network = local.network, subnetwork = local.subnetwork }
}

output "join_url" {
  description = "Where Cloud Tasks sends its tasks."
  value       = local.join_url
}

output "task_queues" {
  description = "The ids of the Cloud Tasks queues."
  value       = [for queue in google_cloud_tasks_queue.this : queue.id]
}

output "database" {
  description = "The name of the Firestore database, `projects/P/databases/D`."
  value       = local.database_name
}

output "memorystore" {
  description = "The name of the Memorystore instance, `projects/P/locations/L/instances/I`."
  value       = local.memorystore_name
}

output "accounts" {
  description = "The e-mail addresses of the service accounts, by what they are for."
  value       = { for name, account in google_service_account.this : name => account.email }
}
