# Everything new in a project of its own: one queue, and a Cloud Run service that enqueues to it.

terraform {
  required_version = ">= 1.9"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 7.41, < 9"
    }
  }
}

variable "project" {
  description = "The Google Cloud project id."
  type        = string
}

variable "location" {
  description = "The region."
  type        = string
  default     = "us-central1"
}

variable "image" {
  description = "The image of the service that enqueues, as examples/service builds it."
  type        = string
}

provider "google" {
  project = var.project
  region  = var.location
}

module "forkjoin" {
  source = "../.."

  project  = var.project
  location = var.location

  queues = {
    feeds = { batch_size = 100 }
  }

  join = {
    queue            = "feeds:feeds"
    source_directory = "${path.module}/handlers"
  }
}

resource "google_cloud_run_v2_service" "enqueuer" {
  name     = "feeds"
  location = var.location

  template {
    service_account = module.forkjoin.enqueuer

    containers {
      image = var.image

      dynamic "env" {
        for_each = module.forkjoin.environment
        content {
          name  = env.key
          value = env.value
        }
      }
    }

    # Memorystore is in the network.
    vpc_access {
      egress = "PRIVATE_RANGES_ONLY"
      network_interfaces {
        network    = module.forkjoin.network.network
        subnetwork = module.forkjoin.network.subnetwork
      }
    }
  }
}

output "url" {
  description = "Where the service is."
  value       = google_cloud_run_v2_service.enqueuer.uri
}

output "environment" {
  description = "What a service needs to enqueue."
  value       = module.forkjoin.environment
}
