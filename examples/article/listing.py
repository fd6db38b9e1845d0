from shoal import Process


class MyProcess(Process):
    def run(self):
        print("MyProcess is running...")


if __name__ == "__main__":
    process = MyProcess()
    process.start()
    process.join()
