# Into a network that is there already, with an existing Memorystore instance and more load: two
# queues, one of them on four Cloud Tasks queues.

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
  default     = "europe-west1"
}

variable "network" {
  description = "The network's id, projects/P/global/networks/N."
  type        = string
}

variable "subnetwork" {
  description = "The subnetwork's id, projects/P/regions/R/subnetworks/S."
  type        = string
}

variable "memorystore" {
  description = "The Memorystore instance, projects/P/locations/L/instances/I, with IAM authentication."
  type        = string
}

variable "notification_channels" {
  description = "Who is told of alarms."
  type        = list(string)
  default     = []
}

provider "google" {
  project = var.project
  region  = var.location
}

module "forkjoin" {
  source = "../.."

  project  = var.project
  location = var.location
  name     = "crawler"

  network = {
    network                  = var.network
    subnetwork               = var.subnetwork
    create_connection_policy = false # the instance has its endpoint already
  }

  memorystore = {
    existing = var.memorystore
  }

  queues = {
    pages = {
      shards            = 4
      lanes             = 4
      batch_size        = 200
      dispatch_deadline = 900
    }
    feeds = {
      batch_period = 5
    }
  }

  join = {
    queue               = "feeds:feeds, feeds:pages"
    source_directory    = "${path.module}/handlers"
    request_concurrency = 20
    min_instances       = 1
  }

  # A service that enqueues already, with an account of its own.
  enqueuers = ["frontend@${var.project}.iam.gserviceaccount.com"]

  alarms = {
    notification_channels = var.notification_channels
    dead_letters          = 10
  }
}

output "environment" {
  description = "What a service needs to enqueue."
  value       = module.forkjoin.environment
}
