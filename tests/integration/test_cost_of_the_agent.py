"""What a hot job costs the agent in each runtime, by counters without a clock (benchmarks/budgets.toml)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from nanoagent.broker.sqs import SqsBroker
from nanoagent.model.job import Runtime
from support.checks import costs

if TYPE_CHECKING:
    from benchmarks.budgets import Budget

    from nanoagent.aws.clients import AwsClients
    from nanoagent.dev.local_services import EmbeddedStack

MESSAGES = 20  # two full batches

pytestmark = pytest.mark.timeout(costs.DEADLINE_S + 60)


@pytest.mark.parametrize(("budget", "runtime"), costs.cases("agent"))
def test_a_hot_job_costs_the_agent_what_is_planned(budget: Budget, runtime: Runtime):
    costs.check(budget, runtime)


def test_every_counter_has_a_budget():
    costs.check_that_all_have_budgets("agent")


async def test_a_batch_of_jobs_costs_the_queue_what_is_planned(stack: EmbeddedStack, clients: AwsClients):
    (budget,) = (budget for budget in costs.BUDGETS if budget.side == "queue")
    url = stack.new_queue(VisibilityTimeout="300")
    client = await clients.sqs()
    for number in range(MESSAGES):
        await client.send_message(QueueUrl=url, MessageBody=str(number))
    broker = SqsBroker(client, url, dlq_url=None, wait_s=1, visibility_s=300)
    calls: list[str] = []
    client.meta.events.register("before-call.sqs", lambda model, **_: calls.append(model.name))
    received = 0
    async with asyncio.timeout(60):
        while received < MESSAGES:
            deliveries = await broker.receive(10)
            received += len(deliveries)
            for delivery in deliveries:
                await broker.ack(delivery)
    await broker.close()

    costs.check_count(budget, Runtime.PYTHON, len(calls))  # the queue does not know the runtimes
